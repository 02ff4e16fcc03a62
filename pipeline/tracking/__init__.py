"""Live view of a run: TensorBoard, MLflow and Ray's metrics, written by the driver, and never in training's way."""
