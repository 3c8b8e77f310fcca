from .pipeline_dir7 import DIR7Pipeline

__all__ = ["DIR7Pipeline"]
