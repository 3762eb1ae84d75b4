"""The kinds of arrays that pass between modules."""

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]
I64Array = NDArray[np.int64]
U8Array = NDArray[np.uint8]
