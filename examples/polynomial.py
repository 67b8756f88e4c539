"""A trainable of one's own: a Chebyshev polynomial fitted to a noisy wave by gradient descent, in numpy."""

import numpy as np

from trainables.trial import SettingsError, TrialDiverged


class Polynomial:
    """Every worker does the same work, so that all report equal figures without talking to each other."""

    mutable = frozenset({"learning_rate", "ridge", "batch_size"})

    @classmethod
    def check(cls, data, settings, searched):
        """Refuse names that `setup` would not know."""
        for name in {**settings, **searched}.keys() - cls.mutable - {"degree"}:
            raise SettingsError(("search_space" if name in searched else "model", name), "is no setting here")

    def setup(self, config, context):
        """Draw the data and start from zero weights."""
        x = np.linspace(-1, 1, context.data["points"])
        self.y = np.sin(6 * x) + np.random.default_rng(0).normal(0, context.data["noise"], len(x))
        self.x = np.polynomial.chebyshev.chebvander(x, config["degree"])  # [points, degree + 1]
        self.config, self.weights = config, np.zeros(config["degree"] + 1)

    def train_epoch(self):
        """One pass over the training points in random batches; the gang seeds numpy for every epoch."""
        x, y = self.x[::2], self.y[::2]
        for batch in np.array_split(np.random.permutation(len(x)), len(x) // self.config["batch_size"]):
            gradient = x[batch].T @ (x[batch] @ self.weights - y[batch]) / len(batch)
            self.weights -= self.config["learning_rate"] * (gradient + self.config["ridge"] * self.weights)
        if not np.abs(self.weights).max() < 1e6:
            raise TrialDiverged("the weights exploded")
        return {"train_loss": float(np.mean((x @ self.weights - y) ** 2))}

    def evaluate(self, full):
        """Mean squared error on the other half of the points."""
        return {"val_loss": float(np.mean((self.x[1::2] @ self.weights - self.y[1::2]) ** 2))}

    def save(self, folder):
        """Write the weights."""
        np.save(folder / "weights.npy", self.weights)

    def load(self, folder):
        """Continue from `save`."""
        self.weights = np.load(folder / "weights.npy")

    def close(self):
        """Let go of nothing."""
