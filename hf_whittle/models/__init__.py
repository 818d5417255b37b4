"""Models: tables of architectures, super-networks, and slices of their weights.

- `architecture`: the classes of a table, and the table of a configuration. Each architecture has a folder, such as
  `gpt_neox`, with its table, its student's configuration and class, and its super-network.
- `elastic`, `supernet`: modules that run a slice of their weights, and the super-network made of them.
- `weights`: names and shapes of weights by the table, and checks of weights.
- `placement`: weights that are sharded or offloaded.
- `checkpoint_names`: names of weights in checkpoints.
- `source`, `slicing`, `padding`: a model as weights and configuration, the weights that a subnet keeps of it, and the
  student that holds them.
- `single_layer`, `activations`: one layer run alone, and recorded inputs and outputs of modules.
- `portable`, `registration`: saving students for all versions of transformers, loading them by auto classes.
"""
