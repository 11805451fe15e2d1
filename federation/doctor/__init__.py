"""What to know before a long job: `python -m federation.doctor`, alone, under mpirun, or in a batch job.

    facts       what one rank, and the world of all ranks, is found to be
    probes/     find out facts; each answers also where something is missing or broken
    checks/     turn facts into findings: pure functions, a file for each subject
    report      findings as lines, as a table, or as JSON
"""
