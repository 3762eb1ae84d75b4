"""How the tiny model is made: data from espeak-ng, a constructed codec, then the language model. Extra: `train`."""
