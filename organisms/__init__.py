"""Small models whose inner workings are known: set by hand, or trained by us."""

from .planted import PlantedModel, null_model, planted_model, planted_relation

__all__ = ["PlantedModel", "null_model", "planted_model", "planted_relation"]
