"""A flight in the forms of other tools: TensorBoard, Weights & Biases, Parquet, CSV; live or afterwards."""
