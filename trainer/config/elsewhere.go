package config

// namesElsewhere are what other trainers (PEFT, transformers, axolotl, LLaMA-Factory, torchtune) call our keys, for proposals.
var namesElsewhere = map[string]string{
	"base_model": "model", "model_name": "model", "model_name_or_path": "model", "model_path": "model",
	"output_dir": "output",
	"dataset":    "data.sources", "datasets": "data.sources", "train_data": "data.sources", "train_file": "data.sources",
	"eval_dataset": "data.validation.path", "validation_file": "data.validation.path", "val_set_size": "data.validation.path",
	"eval_steps": "data.validation.every_steps", "early_stopping_patience": "data.validation.patience",
	"learning_rate": "optimizer.lr", "lr_scheduler": "optimizer.schedule", "lr_scheduler_type": "optimizer.schedule",
	"warmup": "optimizer.warmup_steps", "warmup_ratio": "optimizer.warmup_steps", "num_warmup_steps": "optimizer.warmup_steps",
	"gradient_clipping": "optimizer.max_grad_norm", "clip_grad_norm": "optimizer.max_grad_norm",
	"r": "adapter.rank", "lora_r": "adapter.rank", "lora_rank": "adapter.rank", "lora_alpha": "adapter.alpha", "lora_dropout": "adapter.dropout",
	"target_modules": "adapter.targets", "lora_target": "adapter.targets", "lora_target_modules": "adapter.targets", "lora_modules": "adapter.targets",
	"use_dora": "adapter.dora", "use_rslora": "adapter.rslora", "loraplus_lr_ratio": "adapter.lora_plus_ratio",
	"layers_to_transform": "adapter.layers", "lora_layers": "adapter.layers",
	"sequence_len": "train.seq_len", "cutoff_len": "train.seq_len", "max_seq_len": "train.seq_len", "max_seq_length": "train.seq_len", "max_length": "train.seq_len",
	"num_epochs": "train.epochs", "num_train_epochs": "train.epochs",
	"batch_size": "train.global_batch", "micro_batch_size": "train.global_batch", "per_device_train_batch_size": "train.global_batch",
	"gradient_accumulation_steps": "train.global_batch", "grad_accum_steps": "train.global_batch",
	"gradient_checkpointing": "train.keep_activations",
	"save_steps":             "checkpoint.every_steps", "save_total_limit": "checkpoint.keep_last",
	"system_prompt": "chat.system", "chat_template": "chat.template_file",
	"num_threads": "threads", "random_seed": "seed",
}

// modulesElsewhere are what transformers calls the target modules.
var modulesElsewhere = map[string]string{
	"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "qkv_proj": "attn_qkv",
	"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
	"all-linear": AllLinear, "all": AllLinear, "embed_tokens": TokenEmbd, "lm_head": Output,
}
