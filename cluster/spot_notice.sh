#!/bin/sh
# Runs on spot and preemptible workers: tells Ray that this node will be taken away, so that
# training makes a checkpoint and goes on elsewhere. AWS announces it two minutes ahead, Google
# Cloud half a minute. Started by aws.yaml and gcp.yaml; ends with the notice.
#
#   spot_notice.sh aws|gcp HEAD_ADDRESS:6379
#
# METADATA replaces the address of the cloud's metadata service (the tests have one of their own).
set -eu

cloud=$1
head=$2

case "$cloud" in
  aws)
    service=${METADATA:-http://169.254.169.254}
    seconds=110
    announced() {
      token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$service/latest/api/token")
      curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$service/latest/meta-data/spot/instance-action" > /dev/null
    }
    ;;
  gcp)
    service=${METADATA:-http://metadata.google.internal}
    seconds=25
    announced() {
      test "$(curl -sf -m 2 -H "Metadata-Flavor: Google" "$service/computeMetadata/v1/instance/preempted")" = TRUE
    }
    ;;
  *)
    echo "usage: spot_notice.sh aws|gcp HEAD_ADDRESS:6379" >&2
    exit 2
    ;;
esac

until announced; do
  sleep 2
done

node=$(python -c "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); print(ray.get_runtime_context().get_node_id())" "$head")
ray drain-node --address "$head" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message "the cloud takes this node back" --deadline-remaining-seconds "$seconds"
