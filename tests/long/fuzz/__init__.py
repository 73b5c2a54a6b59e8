"""Bad input at scale: Hypothesis alters valid files, and reading them must end well.

`tests/test_fuzz.py` does it in short, `python -m tests.long.fuzz` at length. Whatever the input, a
case ends in success or in one of the package's own errors (one sentence), within five seconds of
processor time (wall time would measure the load of the machine), takes less than a gigabyte of
additional memory and changes nothing outside its folder: an audit hook sees every file that is
opened for writing, every process and every connection.

Hypothesis alone, without atheris: the readers of these formats are C and C++ (libyaml, torch's zip
reader, pandas, zlib). Atheris cannot see their branches without rebuilding them, and would mutate
as blindly as Hypothesis does; and Hypothesis knows the formats, shrinks its failures and runs
wherever the tests do.
"""
