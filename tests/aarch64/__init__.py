"""The product on a cart's processor, without a cart: Debian for arm64, run by qemu-user.

What an instruction set decides is proved here: that everything installs, runs and decides as on
x86_64. What it does not decide is not: TensorRT, CUDA, and speed. `run` is where it begins.

| module | what it does |
| --- | --- |
| `chroot` | the file system, made and entered; its mounts end with each command |
| `processors` | what qemu is, and what the kernel of a board says of it |
| `installed` | the product's wheel, and wheels for aarch64 |
| `classify` | images on either processor, with all that may differ; runs in the chroot too |
| `comparison` | two results of the same images, and what they may differ by |
| `decisions` | which images run where |
| `maps`, `heat_maps` | heat maps on either processor, and how alike they are |
| `checks` | the product's commands, and tests of this repository, in the chroot |
| `programs` | this machine's compiler, console and PACS, which the chroot sees |
| `jetpacks` | jetson/install.sh as each JetPack |
"""
