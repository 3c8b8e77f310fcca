from .convert import ConversionReport, convert_unet

__all__ = ["ConversionReport", "convert_unet"]
