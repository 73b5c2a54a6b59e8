"""What training costs: throughput, memory and where the time goes, against a plain baseline."""
