"""Beyond the head: the network behind a layer, trained with a new output layer."""
