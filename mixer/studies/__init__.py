"""The paper's claims in small, on real images: python -m mixer.studies fashion --workdir=DIR."""
