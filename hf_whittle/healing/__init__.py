"""Put back in closed form what slicing took away: no gradient step, no change of architecture.

Teacher and student read the same calibration text, layer by layer:

- basis: the student's stream carries the principal components of the teacher's normalised stream, not some of its
  channels. Layer norms subtract the mean and divide by the standard deviation, so that any orthonormal basis of the
  vectors of mean 0 does, and a stock model holds the result: the norms' weights move into what reads them.
- inputs: the student's normalised stream predicts the teacher's, with all its channels; the prediction is folded into
  the matrices that read it (query, key and value, the first of the MLP).
- outputs: from the inputs of the output projections (concatenated heads, MLP neurons, 1 for the bias), the stream after
  the layer is to be the teacher's before the *next kept* layer, so that layers that were left out are absorbed. Where
  the MLP reads what attention wrote (sequential residual), attention is fitted first, to what the teacher's wrote.
- head: the student's final state predicts the teacher's, folded into the output matrix.

Each but the first is a ridge regression on what the student computes with everything before it healed, centred on the
sliced weights.

Shapes: B blocks, T tokens of a block, D channels of the teacher, d of the student.
"""
