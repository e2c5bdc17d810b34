#!/bin/sh
#SBATCH --job-name=cftune-a
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=low
#SBATCH --constraint=a100&nvlink
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --array=0-1%2
umask 077
case $SLURM_ARRAY_TASK_ID in
0) dir='/far/runs/$(touch pwned)' program='/far/it'\''s/cftune' ;;
1) dir='/far/runs/b' program='/far/cftune' ;;
*) echo "no element $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac
cd -- "$dir" && exec "$program" launch job "$dir"
