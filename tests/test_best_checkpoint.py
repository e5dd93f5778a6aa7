"""`checkpoint.keep_best` chooses as if nothing had happened."""

import signal

import jax
import pytest
from small_runs import Job, KilledError, hang, kill_at, send_soon, with_checkpoint
from training_runs import records

from coin_jax.parallel.mesh import make_mesh
from coin_jax.training.manifest import fault

CONFIG = with_checkpoint(every=0, keep_last=1, keep_best=True, best_metric="x")


def measured(values, cut=None):
    """An evaluation that gives one value after the other; SIGTERM comes during number `cut`."""
    count = 0

    def evaluate(params):
        nonlocal count
        if count == cut:
            send_soon(signal.SIGTERM)
            hang()
        count += 1
        return {"x": values[count - 1]}

    return evaluate


@pytest.mark.parametrize("values", [(0.9, 0.5, 0.1), (0.1, 0.9, 0.5), (0.1, 0.5, 0.9)])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_an_evaluation_that_was_cut_short_counts_when_it_is_made_up_for(tmp_path, values, cut):
    """The evaluations are those of the steps 3, 6 and 8."""
    everywhere = jax.NamedSharding(make_mesh(CONFIG.mesh, jax.devices()[:1]), jax.P())
    peaceful, job = (Job(tmp_path / name, everywhere, CONFIG) for name in ("peaceful", "cut"))
    peaceful(evaluate=measured(values))
    assert job(evaluate=measured(values, cut)).signal == signal.SIGTERM
    stopped = max(job.steps())
    assert stopped == (3, 6, 8)[cut]
    job(evaluate=measured(values[cut:]))
    assert job.steps() == peaceful.steps() == sorted({8, (3, 6, 8)[values.index(0.9)]})
    assert records(job.directory) == records(peaceful.directory)
    for step in job.steps():
        assert fault(job.directory / "checkpoints" / str(step)) is None


def test_what_was_made_up_for_is_not_owed_again(tmp_path):
    """The run that made up for it is killed before it saves anew."""
    everywhere = jax.NamedSharding(make_mesh(CONFIG.mesh, jax.devices()[:1]), jax.P())
    peaceful, job = (Job(tmp_path / name, everywhere, CONFIG) for name in ("peaceful", "cut"))
    peaceful(evaluate=measured((0.9, 0.5, 0.1)))
    assert job(evaluate=measured((), cut=0)).signal == signal.SIGTERM
    with pytest.raises(KilledError):
        job(before=kill_at(4), evaluate=measured((0.9,)))
    job(evaluate=measured((0.5, 0.1)))
    assert job.steps() == peaceful.steps()
    assert records(job.directory) == records(peaceful.directory)
