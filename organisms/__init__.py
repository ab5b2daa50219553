"""Small models whose inner workings are known: set by hand, or trained by us."""

from .planted import PlantedModel, null_model, planted_model, planted_relation
from .planted_retrieval import (
    PlantedRetrieval,
    null_retrieval_model,
    planted_retrieval_design,
    planted_retrieval_model,
)
from .planted_units import PlantedUnits, null_units_model, plant_unit, planted_units_model

__all__ = [
    "PlantedModel",
    "PlantedRetrieval",
    "PlantedUnits",
    "null_model",
    "null_retrieval_model",
    "null_units_model",
    "plant_unit",
    "planted_model",
    "planted_relation",
    "planted_retrieval_design",
    "planted_retrieval_model",
    "planted_units_model",
]
