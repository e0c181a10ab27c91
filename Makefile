# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# -n: pytest processes. Each takes one thread, so that they do not fight over the cores.
JOBS   ?= 2

.PHONY: demo test pretrained figures lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,timm,ray,onnx]'
	touch $@

demo: install
	$(BIN)/autosparse demo --out demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pretrained scorers, from CIFAR-10 as JPEG images (an archive with train/CLASS/* and test/CLASS/* in this folder). The
# trials beside the default scorer are used again; remove them to make them anew.
IMAGES ?= cifar10-jpeg.tar.gz
SOURCE := runs/resnet20-cifar10.h5

pretrained: install
	mkdir -p runs
	test -e $(SOURCE) || $(BIN)/autosparse generate --model resnet20 --dataset imagefolder:$(IMAGES) --rounds 16 \
	    --final-density 0.01 --epochs 1 --batch-size 256 --lr 0.2 --score-images 1280 --seed 0 --out $(SOURCE)
	$(BIN)/autosparse train-scorer $(SOURCE) --out pretrained/resnet20-cifar10.safetensors --force
	$(BIN)/autosparse train-scorer $(SOURCE) --features paper --out pretrained/resnet20-cifar10-paper.safetensors --force
	for name in cifar10-search cifar10-flow cifar10-long cifar10-digits; do $(BIN)/autosparse search-scorer pretrained/$$name.yaml \
	    --trials pretrained/$$name.jsonl --out pretrained/$$name.safetensors --jobs $(JOBS) --force || exit 1; done
	$(BIN)/python pretrained/guide.py

# The pages of the stored benchmarks and IRP runs, and the figures of docs/study.md that are among theirs.
figures: install
	mkdir -p runs/stored
	for stored in docs/results/*.cells.tar.gz docs/results/*.h5; do \
	    test -e $$stored || continue; \
	    name=$$(basename $${stored%.cells.tar.gz} .h5); page=runs/stored/$$name; \
	    case $$stored in \
	        *.h5) source=$$stored;; \
	        *) source=$$page; rm -rf $$page; mkdir $$page && tar xzf $$stored -C $$page || exit 1;; \
	    esac; \
	    $(BIN)/autosparse report $$source --out $$page.html --figures $$page-figures --force || exit 1; \
	    for figure in docs/results/$$name/*; do \
	        if test -e $$figure; then cp $$page-figures/$$(basename $$figure) $$figure || exit 1; fi; \
	    done; \
	done

clean:
	rm -rf $(VENV) demo build dist
