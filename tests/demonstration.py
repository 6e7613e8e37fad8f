"""The demonstration's network and its images, as the first lines of a script whose training is another one."""

BEGINNING = """
import resmon, torch
from sklearn.datasets import load_digits
from examples.digits import ResidualNetwork

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
labels = torch.tensor(digits.target)
model = ResidualNetwork()
"""
