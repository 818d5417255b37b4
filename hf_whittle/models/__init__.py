"""Models: super-networks, slices of their weights, and students.

- `rows`, `elastic`, `supernet`, `supernets`: the rows of weights that a subnet keeps, modules that run them, and the
  super-networks made of these.
- `student`, `students`: the configuration and class of a student; the code that travels with one.
- `weights`: names and shapes of weights by the table, and checks of weights.
- `placement`: weights that are sharded or offloaded.
- `checkpoint_names`: names of weights in checkpoints.
- `source`, `slicing`, `padding`: a model as weights and configuration, the weights that a subnet keeps of it, and the
  student that holds them.
- `single_layer`, `activations`: one layer run alone, and recorded inputs and outputs of modules.
- `portable`, `registration`: saving students for all versions of transformers, loading them by auto classes.
"""
