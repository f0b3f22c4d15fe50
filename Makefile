# make demo   train the baseline and DiscrimLoss on real digits with 40 % wrong labels, compare, draw
# make test   the whole test suite
# make tables rewrite the tables of README.md, results/README.md and docs/ from results/
# make pictures redraw those of results/pictures for which the logs in results/ suffice
# make lint   ruff
# Each makes the environment .venv first, if it is not there. Needs Python >= 3.10 with its venv module.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := runs/demo
EPOCHS ?= 60
# where it is set, every start of Python compiles torch again: up to 20 s
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test tables pictures lint

demo: $(VENV)/.runtime
	$(PY) main.py params/digits/plain.yaml epochs=$(EPOCHS) threads=2 run_dir=$(DEMO)/$(EPOCHS)-epochs/plain
	$(PY) main.py params/digits/discrimloss.yaml epochs=$(EPOCHS) threads=2 run_dir=$(DEMO)/$(EPOCHS)-epochs/discrimloss
	$(PY) -m utils.report $(DEMO)/$(EPOCHS)-epochs --figures $(DEMO)/$(EPOCHS)-epochs/pictures

test: $(VENV)/.dev
	$(PY) -m pytest -q -n 2 --dist loadfile

tables: $(VENV)/.runtime
	$(PY) -m utils.report --update README.md results/README.md docs/*.md

pictures: $(VENV)/.runtime
	$(PY) -m utils.report results/demo --figures runs/pictures/demo > /dev/null
	$(PY) -m utils.report results/mnist --figures runs/pictures/mnist > /dev/null
	$(PY) -m utils.report results/mnist results/mnist_ablations --where "fraction == 0.4" --figures runs/pictures/ablations > /dev/null
	$(PY) -m utils.report results/digits --where "fraction == 0.4" --figures runs/pictures/digits > /dev/null
	$(PY) -m utils.report results/digitsum --where "fraction == 0" --figures runs/pictures/digitsum > /dev/null
	$(PY) -m utils.search table results/mnist_search/trials.csv --figure results/pictures/trials.png > /dev/null
	$(PY) -m utils.search table results/cifar10_features_search/trials.csv --figure results/pictures/features_trials.png > /dev/null
	$(PY) -m utils.report results/cifar10n --figures runs/pictures/cifar10n > /dev/null
	$(PY) -m utils.report results/mnist_mlp results/mnist_mlp_chosen --grid last --against Plain --figures runs/pictures/mnist_mlp > /dev/null
	cp runs/pictures/mnist_mlp/last-mnist-accuracy-against-Plain.png results/pictures/mnist_mlp.png
	$(PY) -m utils.report results/cifar10_features --where "noise != 'permute' or fraction > 0" --grid last --against Plain --figures runs/pictures/features > /dev/null
	cp runs/pictures/features/last-cifar10-accuracy-against-Plain.png results/pictures/features.png
	$(PY) -m utils.report results/mnist_chosen --figures runs/pictures/chosen > /dev/null
	$(PY) -m utils.report results/mnist_trusted --grid last --over trusted.count --where "label in ['MentorNet DD', 'CleanNet', 'fine-tuned on the trusted', 'trusted among the others', 'trusted alone', 'Plain']" --figures runs/pictures/trusted > /dev/null
	cp runs/pictures/trusted/trusted.count-mnist-permute.png results/pictures/trusted.png
	cp runs/pictures/cifar10n/epochs-cifar10-human-worse-0.png results/pictures/cifar10n.png
	cp runs/pictures/demo/epochs-digits-symmetric-0.4.png results/pictures/demo.png
	cp runs/pictures/demo/weights-digits-symmetric-0.4.png results/pictures/demo_weights.png
	cp runs/pictures/mnist/noise-mnist-permute.png results/pictures/noise.png
	cp runs/pictures/mnist/detection-mnist-permute.png results/pictures/detection.png
	cp runs/pictures/chosen/methods-mnist-permute-0.4.png results/pictures/chosen.png
	cp runs/pictures/ablations/methods-mnist-permute-0.4.png results/pictures/ablations.png
	cp runs/pictures/digits/epochs-digits-symmetric-0.4.png results/pictures/epochs.png
	cp runs/pictures/digitsum/epochs-digitsum-label_permutation-0.png results/pictures/digitsum.png
	cp runs/pictures/digits/weights-digits-symmetric-0.4.png results/pictures/weights.png

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

$(VENV)/.runtime: requirements.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip install --quiet --python $(PY) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(PY) -m uv pip install --quiet --python $(PY) -r requirements-dev.txt
	@touch $@
