"""Data to distil and to evaluate on: text, pairs, images, recordings and hub data sets, as batches for a model."""

from .ahead import Ahead
from .batching import Split
from .corpus import Corpus, check_data, load_corpus
from .examples import EvalBatch, EvalData, load_as, load_examples

__all__ = ["Ahead", "Corpus", "EvalBatch", "EvalData", "Split", "check_data", "load_as", "load_corpus", "load_examples"]
