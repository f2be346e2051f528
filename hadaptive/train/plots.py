"""Curves of a run as a PNG."""

from matplotlib.figure import Figure

from hadaptive.files import read_csv
from hadaptive.pictures import save_png
from hadaptive.runs import RunFolder


def _block(layer: str) -> str:
    """The block that a layer is in, whichever version wrote its name."""
    return layer.removesuffix(".expansion.cross_hadamard").removesuffix(".expansion.expansion")


def plot_curves(run: RunFolder) -> None:
    """Draw loss, accuracy and, where there are ACH layers, agreement and temperature over the epochs."""
    metrics, selection = read_csv(run.metrics), read_csv(run.selection)
    if not metrics:
        return
    figure = Figure(figsize=(11, 3.2 * (2 if selection else 1)), layout="constrained")
    axes = figure.subplots(2 if selection else 1, 2, squeeze=False)
    epochs = [int(row["epoch"]) + 1 for row in metrics]
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        axes[0, 0].plot(epochs, [float(row[key]) for row in metrics], label=label)
    several = "val_average_precision" in metrics[0]  # classes an image
    entropy = "binary cross-entropy" if several else "cross-entropy"
    axes[0, 0].set(title="loss", xlabel="epoch", ylabel=f"{entropy}, nats")
    axes[0, 0].legend()
    score, title = (
        ("average_precision", "validation, mean average precision")
        if several
        else ("accuracy", "validation accuracy")
    )
    axes[0, 1].plot(epochs, [100 * float(row[f"val_{score}"]) for row in metrics])
    axes[0, 1].set(title=title, xlabel="epoch", ylabel="%")
    if selection:
        layers = list(dict.fromkeys(_block(row["layer"]) for row in selection))
        for panel, key, title in (
            (axes[1, 0], "agreement", "noisy selection agrees with the noiseless one"),
            (axes[1, 1], "temperature", "temperature"),
        ):
            for layer in layers:
                rows = [row for row in selection if _block(row["layer"]) == layer]
                panel.plot([int(r["epoch"]) + 1 for r in rows], [float(r[key]) for r in rows], label=layer)
            panel.set(title=title, xlabel="epoch")
        axes[1, 0].legend(fontsize="x-small")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    save_png(figure, run.curves)
