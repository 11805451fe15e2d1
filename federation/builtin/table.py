"""The phone book of built-in components: registry name -> where the class is. Nothing is imported to be listed here."""

COMPONENTS = {
    "federated.trainer.default": "federation.builtin.trainers.default:DefaultTrainer",
    "federated.trainer.async": "federation.builtin.trainers.asynchronous:AsyncTrainer",
    "federated.learner.default": "federation.builtin.learners.default:DefaultLearner",
    "federated.learner.fedprox": "federation.builtin.learners.fedprox:FedProxLearner",
    "federated.learner.scaffold": "federation.builtin.learners.scaffold:ScaffoldLearner",
    "federated.learner.feddyn": "federation.builtin.learners.feddyn:FedDynLearner",
    "federated.learner.ditto": "federation.builtin.learners.ditto:DittoLearner",
    "federated.learner.sklearn": "federation.builtin.learners.sklearn:SklearnLearner",
    "federated.aggregator.fedavg": "federation.builtin.aggregators.fedavg:FedAvgAggregator",
    "federated.aggregator.fedasync": "federation.builtin.aggregators.fedasync:FedAsyncAggregator",
    "federated.aggregator.fedbuff": "federation.builtin.aggregators.fedbuff:FedBuffAggregator",
    "federated.aggregator.fedprox": "federation.builtin.aggregators.fedprox:FedProxAggregator",
    "federated.aggregator.fedavgm": "federation.builtin.aggregators.fedavgm:FedAvgMAggregator",
    "federated.aggregator.fedadam": "federation.builtin.aggregators.fedadam:FedAdamAggregator",
    "federated.aggregator.fedyogi": "federation.builtin.aggregators.fedyogi:FedYogiAggregator",
    "federated.aggregator.fedadagrad": "federation.builtin.aggregators.fedadagrad:FedAdagradAggregator",
    "federated.aggregator.fednova": "federation.builtin.aggregators.fednova:FedNovaAggregator",
    "federated.aggregator.qfedavg": "federation.builtin.aggregators.qfedavg:QFedAvgAggregator",
    "federated.aggregator.scaffold": "federation.builtin.aggregators.scaffold:ScaffoldAggregator",
    "federated.aggregator.feddyn": "federation.builtin.aggregators.feddyn:FedDynAggregator",
    "federated.aggregator.norm_clipping": "federation.builtin.aggregators.norm_clipping:NormClippingAggregator",
    "federated.aggregator.median": "federation.builtin.aggregators.median:MedianAggregator",
    "federated.aggregator.trimmed_mean": "federation.builtin.aggregators.trimmed_mean:TrimmedMeanAggregator",
    "federated.aggregator.krum": "federation.builtin.aggregators.krum:KrumAggregator",
    "federated.aggregator.multikrum": "federation.builtin.aggregators.multikrum:MultiKrumAggregator",
    "federated.aggregator.bulyan": "federation.builtin.aggregators.bulyan:BulyanAggregator",
    "federated.aggregator.geometric_median": "federation.builtin.aggregators.geometric_median:GeometricMedianAggregator",
    "federated.aggregator.centred_clipping": "federation.builtin.aggregators.centred_clipping:CentredClippingAggregator",
    "federated.aggregator.fltrust": "federation.builtin.aggregators.fltrust:FLTrustAggregator",
    "model.torch.mlp": "federation.builtin.models.mlp:MLPModel",
    "model.torch.cnn": "federation.builtin.models.cnn:CNNModel",
    "model.torch.resnet18": "federation.builtin.models.resnet18:ResNet18Model",
    "model.torch.lstm": "federation.builtin.models.lstm:LSTMModel",
    "model.torch.module": "federation.builtin.models.module:TorchModuleModel",
    "model.numpy.linear": "federation.builtin.models.linear:LinearModel",
    "model.sklearn.logistic": "federation.builtin.models.logistic:LogisticModel",
}

#: Aggregators whose rule needs a certain learner (`Aggregator.learner` of the class).
LEARNERS = {
    "federated.aggregator.fedprox": "federated.learner.fedprox",
    "federated.aggregator.scaffold": "federated.learner.scaffold",
    "federated.aggregator.feddyn": "federated.learner.feddyn",
}

#: Components that cannot be made without a setting: theirs are held against the constructor even where none is given.
NEEDY = frozenset({
    "federated.aggregator.qfedavg",
    "federated.aggregator.norm_clipping",
    "federated.aggregator.centred_clipping",
    "federated.aggregator.fltrust",
    "model.torch.module",
})
