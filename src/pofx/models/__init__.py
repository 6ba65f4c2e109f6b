"""The families of generative models: the contract, the denoiser, and one file or folder a family."""
