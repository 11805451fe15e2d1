"""Data: where samples come from (`provider`), who has them (`partitioner`, `manager`), who takes part (`sampling`)."""

from federation.data.client_data import Batches, ClientData, builtin_sample
from federation.data.dataset import Dataset
from federation.data.load import load_dataset
from federation.data.manager import DataManager
from federation.data.partition import Partition, PartitionSummary
from federation.data.partitioner import PARTITIONERS
from federation.data.provider import DataProvider
from federation.data.sampling import cohort_size_of, draw_cohort

__all__ = ["PARTITIONERS", "Batches", "ClientData", "DataManager", "DataProvider", "Dataset", "Partition",
           "PartitionSummary", "builtin_sample", "cohort_size_of", "draw_cohort", "load_dataset"]
