"""Healing: recover in closed form what slicing lost, without gradient steps or changes of architecture.

Teacher and student read the same calibration text, layer by layer:

- basis: the student's hidden states carry principal components of the teacher's normalized hidden states instead of
  some of their channels. Norms divide by the standard deviation after they subtract the mean, so that any orthonormal
  basis of the vectors of mean 0 will do; or by the root mean square, so that any orthonormal basis will do. A stock
  model holds the result: weights of norms move into the matrices that read their output. Where the embedding is tied
  to the output matrix, the last norm keeps its weight, and channels that it scales unlike most others stay as they are;
  if norms subtract the mean then, or if a norm follows attention and MLP, the whole basis stays.
- inputs: where channels are left out, or all layers before, the student's normalized hidden states predict the
  teacher's; the prediction is folded into the matrices that read them (queries, keys and values, and the first of the
  MLP). A constant goes into their biases or that of the norm; without either, there is none.
- outputs: the inputs of the output projections (concatenated heads, MLP neurons, and 1 for the bias) predict the
  teacher's hidden states before the *next kept* layer, which absorbs the layers in between. Where the MLP reads what
  attention wrote (sequential residual), attention is fitted first, to the output of the teacher's attention. Where a
  norm follows attention and MLP, they predict in the kept channels what the teacher's write to that norm, and nothing
  is absorbed: a norm sets the scale of what is added, which cannot grow.
- head: where they differ, the student's last hidden states predict the teacher's; the prediction is folded into the
  output matrix, unless that is tied to the embedding.

Each step but the first is a ridge regression centered on the sliced weights; for outputs, squared errors of a token are
relative to the root mean square of the hidden state that is to be reached. `healer` heals one student layer by layer,
on hidden states of the teacher or of the student as healed so far. `supernet_moments` and `from_moments` heal any
number of students approximately, from second moments of the super-network that are gathered once.

Shapes: B blocks, T tokens of a block, D channels of the teacher, d channels of the student.
"""
