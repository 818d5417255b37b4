"""Models: tables of architectures, super-networks and what is sliced from them.

- `architecture`: what a table is and where to find one; a folder an architecture (`gpt_neox`) holds its table, its
  student's configuration and class, and its super-network.
- `elastic`, `supernet`: modules that run a slice of their weights, and the super-network made of them.
- `weights`: checks of weights, and their names and shapes by the table; `sharding`: weights spread over processes.
- `source`, `slicing`, `padding`: weights that a subnet keeps, and the student that holds them.
- `single_layer`, `recording`: one layer run alone, and what modules read and wrote in a forward pass.
- `portable`, `registration`: students as other versions of transformers and its auto classes load them.
"""
