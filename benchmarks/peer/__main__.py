"""Make the environment that X-ARES runs in, or say that it is there."""

from benchmarks.peer.environment import make_environment

if __name__ == "__main__":
    print(f"X-ARES runs in {make_environment()}")
