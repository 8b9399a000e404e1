#!/usr/bin/env bash
# Nodes that come and go, without a scheduler: start this on each, whenever it is there; the first line is the same on all.
#
#     HEAD=node-a examples/clusters/elastic.sh data=shards data.shards=/shared/shards output_dir=/shared/emb
#
# HEAD is the one node that must stay: torchrun's ranks meet there. The output lies on storage that all nodes see. A rank or
# a node that dies costs what it had in hand; the others are started again, as when a node joins, and do what is missing.
#
#     HEAD=host[:port]   RANKS=processes a node, GPUs say   NODES=least:most   RESTARTS=after so many deaths the job ends
#     JOIN=seconds that each start waits for more nodes     RDZV_ID=a name, where several jobs meet at one HEAD
# How far it was tried: docs/clusters.md
set -euo pipefail
ranks=${RANKS:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)}
# Each start of the ranks gets a store of its own: a late node would look for the first one where it no longer is
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes="${NODES:-1:4}" --nproc_per_node="$((ranks > 0 ? ranks : 1))" --max-restarts="${RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="${HEAD:?the host where the nodes meet}" --rdzv_id="${RDZV_ID:-lora-clip}" \
    --rdzv_conf="last_call_timeout=${JOIN:-10}" -m lora_clip embed "$@"
