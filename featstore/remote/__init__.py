"""Objects at URLs: what a server of buckets, of files or of repositories is asked for, and how it is asked.

Two clients, each where it is the better one, behind one protocol (`Remote`):

- **obstore** (Rust's object_store) speaks ``s3://``, ``gs://`` and ``az://``, and reads ``http(s)://``. One wheel with
  no dependencies; one request for each operation, ranges in parallel, retries with backoff inside, credentials from
  the usual environment; it lets go of the GIL. fsspec's own s3fs, gcsfs and adlfs pull in an SDK each, ask the server
  more often (a ``HEAD`` before a ``GET``), and retry each in its own way.
- **fsspec** serves what obstore cannot: ``hf://`` (through huggingface_hub), ``memory://``, and the listing of a plain
  web server, which is a page of links.
"""

from featstore.remote.client import NETWORK_THREADS, Remote, RemoteObject, is_url, joined_url
from featstore.remote.open import open_remote

__all__ = ["NETWORK_THREADS", "Remote", "RemoteObject", "is_url", "joined_url", "open_remote"]
