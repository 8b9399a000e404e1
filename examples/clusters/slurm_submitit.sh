#!/usr/bin/env bash
# SLURM without a batch script: Hydra submits each point of a sweep as a job of its own, and waits for all of them.
#
#     pip install lora-clip hydra-submitit-launcher
#     examples/clusters/slurm_submitit.sh                      # on a login node
#     examples/clusters/slurm_submitit.sh submitit_local       # on this machine, without SLURM; more keys may follow
#
# A point is an adapter here. Each needs a folder of its own, hence ${hydra:job.num}; the logs are in /shared/jobs/.submitit.
# A job that runs into its time limit is submitted again by submitit, and goes on where it was.
# How far it was tried: docs/clusters.md
set -euo pipefail
launcher=${1:-submitit_slurm}
slurm=(hydra.launcher.partition=gpu hydra.launcher.gpus_per_node=4 hydra.launcher.tasks_per_node=4
    hydra.launcher.cpus_per_task=16 trainer.devices=4)
if [ "$launcher" = submitit_local ]; then slurm=(); fi
# shellcheck disable=SC2086
exec lora-clip embed -m hydra/launcher="$launcher" hydra.launcher.timeout_min=240 ${slurm[@]+"${slurm[@]}"} \
    hydra.sweep.dir="${JOBS:-/shared/jobs}" \
    ${INPUT:-data=shards data.shards=/shared/shards} \
    model.adapter="${ADAPTERS:-/shared/lora/step-1000,/shared/lora/step-2000}" \
    'output_dir='"${OUTPUT:-/shared/emb}"'/${hydra:job.num}' "${@:2}"
