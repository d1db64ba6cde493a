"""PSNR and SSIM by the field's protocol, tables of them, and pictures of what they mean."""
