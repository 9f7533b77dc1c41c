#!/bin/sh
# Starts MLflow with PostgreSQL on this host, in containers, unless they run already.
#
#   mlflow.sh IMAGE ARTIFACTS        ARTIFACTS: s3://bucket/mlflow, gs://..., or /mnt/shared/mlflow
#
# The password of the database is made here at the first start and stays in ~/.uml/postgres
# (mode 600). Only this host reaches the database; MLflow answers on port 5000 of the private
# network, without a login: keep that port closed to everything but the cluster.
set -eu

image=$1
artifacts=$2
folder=$HOME/.uml
mkdir -p "$folder/postgres-data"
chmod 700 "$folder"
if ! test -s "$folder/postgres"; then
  (umask 077 && printf 'POSTGRES_PASSWORD=%s\n' "$(openssl rand -hex 24)" > "$folder/postgres")
fi
. "$folder/postgres"

running() {
  test "$(docker inspect --format '{{.State.Running}}' "$1" 2> /dev/null)" = true
}

if ! running uml-postgres; then
  docker rm --force uml-postgres > /dev/null 2>&1 || true
  docker run --detach --name uml-postgres --restart unless-stopped --network host \
    --env-file "$folder/postgres" --env POSTGRES_USER=mlflow --env POSTGRES_DB=mlflow \
    --volume "$folder/postgres-data:/var/lib/postgresql/data" \
    --health-cmd "pg_isready -U mlflow" --health-interval 10s \
    postgres:16 -c listen_addresses=127.0.0.1
fi
until docker exec uml-postgres pg_isready -U mlflow > /dev/null 2>&1; do
  sleep 1
done

if ! running uml-mlflow; then
  docker rm --force uml-mlflow > /dev/null 2>&1 || true
  (umask 077 && printf 'MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow:%s@127.0.0.1/mlflow\n' \
    "$POSTGRES_PASSWORD" > "$folder/mlflow")
  docker run --detach --name uml-mlflow --restart unless-stopped --network host \
    --env-file "$folder/mlflow" --volume /mnt/shared:/mnt/shared \
    --health-cmd "curl -sf http://127.0.0.1:5000/health" --health-interval 10s \
    "$image" mlflow server --host 0.0.0.0 --port 5000 --workers 2 \
    --artifacts-destination "$artifacts"
fi
