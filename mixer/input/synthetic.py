"""placeholder of another branch"""

import numpy as np


class Synthetic:
  for_evaluation = False
  preprocessing: dict = {}
  class_names: tuple = ()

  def __init__(self, *, num_classes, num_examples, image_size, batch_size, multi_label=False):
    self.num_classes, self.num_examples, self.batch_size = num_classes, num_examples, batch_size
    self.image_size, self.channels, self.multi_label = (image_size, image_size), 3, multi_label

  def train_batches(self, first_batch, seed, shard=0, num_shards=1):
    n = self.batch_size // num_shards
    image = np.zeros((n, *self.image_size, 3), np.uint8)
    label = np.zeros((n, self.num_classes), np.uint8) if self.multi_label else np.zeros(n, np.int32)
    while True:
      yield {'image': image, 'label': label}
