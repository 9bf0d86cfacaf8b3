"""DAGM 2007 as a TFDS data set: importing this package registers ``dagm2007`` with tensorflow_datasets."""

from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder

__all__ = ["Builder"]
