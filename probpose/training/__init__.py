"""Training on 🤗 Accelerate: `probpose train CONFIG.yaml`."""
