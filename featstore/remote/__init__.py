"""Objects at URLs: buckets, web servers and repositories of the Hugging Face Hub.

The base class `Remote` has two implementations:

- **obstore** (Rust's object_store) serves ``s3://``, ``gs://`` and ``az://``, and reads ``http(s)://``. It is one wheel
  without dependencies. It sends one request per operation, reads ranges in parallel, retries with backoff, takes
  credentials from the usual environment variables, and releases the GIL. fsspec's s3fs, gcsfs and adlfs each need an
  SDK, send more requests (a ``HEAD`` before a ``GET``), and have different retry rules.
- **fsspec** serves what obstore does not: ``hf://`` (through huggingface_hub), ``memory://``, and listings of plain web
  servers, which are index pages of links.
"""

from featstore.remote.client import NETWORK_THREADS, Remote, RemoteObject, is_url, joined_url
from featstore.remote.open import open_remote

__all__ = ["NETWORK_THREADS", "Remote", "RemoteObject", "is_url", "joined_url", "open_remote"]
