import torch

from ..models.text_windows import encode_texts


class Prompts:
    def __init__(self, text_encoder, tokenizer, prefix, cache):
        self.t, self.k, self.p = text_encoder, tokenizer, prefix

    @torch.no_grad()
    def encode(self, captions):
        return encode_texts(self.t, self.k, [self.p + c for c in captions])
