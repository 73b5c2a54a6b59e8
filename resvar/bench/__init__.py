"""The cost of training: throughput, memory and where the time goes, against a plain baseline."""
