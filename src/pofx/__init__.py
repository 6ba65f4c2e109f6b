"""pofx: p(x) of images, learned by several families of generative models and compared fairly."""
