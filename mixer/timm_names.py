"""Models that timm has with the same dimensions: {our name: timm's architecture}."""

# timm has no Mixer-H/14, BiT-R50x2, R152x1 and R200x3.
ARCHITECTURES = {
  **{
    f'Mixer-{size}/{patch}': f'mixer_{size.lower()}{patch}_224'
    for size in 'SBL'
    for patch in (32, 16)
  },
  **{
    f'ViT-{size}/{patch}': f'vit_{name}_patch{patch}_224'
    for size, name, patches in (
      ('Ti', 'tiny', (16,)), ('S', 'small', (32, 16, 8)), ('B', 'base', (32, 16, 8)),
      ('L', 'large', (32, 16, 14)), ('H', 'huge', (14,)),
    )
    for patch in patches
  },
  **{
    f'BiT-R{size}': f'resnetv2_{size}_bit'
    for size in ('50x1', '50x3', '101x1', '101x3', '152x2', '152x4')
  },
}  # fmt: skip
