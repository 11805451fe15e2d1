"""The phone book of built-in components: registry name -> where the class is. Nothing is imported to be listed here."""

COMPONENTS = {
    "federated.trainer.default": "federation.builtin.trainers.default:DefaultTrainer",
    "federated.learner.default": "federation.builtin.learners.default:DefaultLearner",
    "federated.learner.sklearn": "federation.builtin.learners.sklearn:SklearnLearner",
    "federated.aggregator.fedavg": "federation.builtin.aggregators.fedavg:FedAvgAggregator",
    "model.torch.mlp": "federation.builtin.models.mlp:MLPModel",
    "model.torch.cnn": "federation.builtin.models.cnn:CNNModel",
    "model.numpy.linear": "federation.builtin.models.linear:LinearModel",
    "model.sklearn.logistic": "federation.builtin.models.logistic:LogisticModel",
}

#: Aggregators whose rule needs a certain learner (`Aggregator.learner` of the class).
LEARNERS = {
    "federated.aggregator.fedprox": "federated.learner.fedprox",
    "federated.aggregator.scaffold": "federated.learner.scaffold",
    "federated.aggregator.feddyn": "federated.learner.feddyn",
}
