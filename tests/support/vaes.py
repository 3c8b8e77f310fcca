"""VAEs small enough to draw in a fraction of a second."""

from diffusers import AutoencoderKL


def tiny_vae(latent_channels=4):
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=latent_channels,
    ).eval()
