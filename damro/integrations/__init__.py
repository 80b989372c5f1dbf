"""damro where users have their benchmarks already: as a model of lmms-eval and of VLMEvalKit."""
