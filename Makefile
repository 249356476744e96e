# The course in two commands: `make course` to learn, `make test` to check it all.
# `make` alone lists the rest. Written for GNU make 3.81, which macOS has.

PYTHON ?= python3
PIP_OPTIONS ?=
JUPYTER_OPTIONS ?=
COURSE_FOLDER ?= my-course

VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# JupyterLab refuses to start for root, who is the only user in many containers.
ROOT_OPTIONS := $(shell test "$$(id -u)" != 0 || echo --allow-root)
# JupyterLab asks about its news before anything else; in this environment it does not.
LABCONFIG := $(VENV)/etc/jupyter/labconfig
NO_NEWS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}

.PHONY: help course test slides site handout bench lesson lint

help:
	@echo "make course      install what the lessons need, open your copy in JupyterLab"
	@echo "make test        run every test and every notebook"
	@echo "make slides      build each lesson as a deck that needs no network"
	@echo "make site        build the site to read: lessons, decks, API, with a search"
	@echo "make handout     print the course: one PDF for students, one for teachers"
	@echo "make bench       time the rotations on this machine, beside other libraries"
	@echo "make lint        check the style of code and notebooks, and the types"
	@echo "make lesson L=04 run one lesson again and check it (for authors)"
	@echo
	@echo "Options: PYTHON=python3.12   PIP_OPTIONS='...'   JUPYTER_OPTIONS=--no-browser"
	@echo "         COURSE_FOLDER=my-course (where your copy of the lessons is)"
	@echo "For make site: REPOSITORY=https://github.com/OWNER/NAME JUPYTERHUB=https://..."

course: $(VENV)/.course
	$(BIN)/python -m rope_teach doctor || { rm -f $<; exit 1; }
	$(BIN)/python -m rope_teach lessons "$(COURSE_FOLDER)"
	$(BIN)/python -m jupyterlab --config=tools/jupyter_config.py \
		$(ROOT_OPTIONS) $(JUPYTER_OPTIONS) \
		"$(COURSE_FOLDER)/00_start_here.ipynb"

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

slides: $(VENV)/.slides
	$(BIN)/python slides/build.py

site: $(VENV)/.site
	$(BIN)/python site/build.py

handout: $(VENV)/.site
	$(BIN)/python site/handout.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/attention.py
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
		then for script in gpu gpu_choices fusion; do \
			$(BIN)/python benchmarks/$$script.py; done; \
		else echo "No CUDA device here; benchmarks/results/gpu.md has one's figures."; fi

lesson: $(VENV)/.test
	@test -n "$(L)" || { echo "Which lesson? For example: make lesson L=04"; exit 1; }
	$(BIN)/python tools/lesson.py $(L)

lint: $(VENV)/.test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

$(VENV)/.course: EXTRAS := course
$(VENV)/.slides: EXTRAS := course,slides
$(VENV)/.site: EXTRAS := course,slides,site
$(VENV)/.site: ALSO := $(VENV)/.course $(VENV)/.slides
$(VENV)/.test: EXTRAS := course,test,slides,site,peers
$(VENV)/.test: ALSO := $(VENV)/.course $(VENV)/.slides $(VENV)/.site
$(VENV)/.course $(VENV)/.slides $(VENV)/.site $(VENV)/.test: \
		$(VENV)/pyvenv.cfg pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install $(PIP_OPTIONS) -c constraints.txt -e ".[$(EXTRAS)]"
	@mkdir -p $(LABCONFIG)
	@echo '$(NO_NEWS)' > $(LABCONFIG)/default_setting_overrides.json
	@touch $@ $(ALSO)

# A half-made environment is removed, so that the next run starts afresh.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || { \
		echo "rope_teach needs Python 3.10 to 3.14; '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1)." >&2; \
		echo "Install one and name it: make course PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "'$(PYTHON)' cannot make a virtual environment." >&2; \
		echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
