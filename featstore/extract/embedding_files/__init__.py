"""Files of embeddings that other software made: npz, npy, parquet, safetensors and data sets of Hugging Face."""

from featstore.extract.embedding_files.numpy_files import ArrayEmbeddings
from featstore.extract.embedding_files.open import open_embeddings
from featstore.extract.embedding_files.rows import Columns, EmbeddingFile, Rows

__all__ = ["ArrayEmbeddings", "Columns", "EmbeddingFile", "Rows", "open_embeddings"]
