"""Converters from the formats that people hold to records: one module per format, imported when it is asked for."""

FORMATS: dict[str, str] = {
    "llava": "LLaVA conversation JSON with images, videos or audio",
    "coco": "COCO annotations: detection, instances, captions or panoptic",
    "refcoco": "RefCOCO, RefCOCO+ and RefCOCOg: expressions with boxes or masks",
    "reasonseg": "ReasonSeg folders: images beside labelme JSON",
    "visual-genome": "Visual Genome region descriptions",
    "vqa": "VQAv2-style question and annotation files",
    "edit-pairs": "InstructPix2Pix-style folders: an image, an instruction, the edited image",
    "librispeech": "LibriSpeech trees: transcripts beside FLAC files",
    "voice-tsv": "Common Voice and CoVoST 2 TSV files",
    "wavllm": "WavLLM TSV files",
    "voxceleb": "VoxCeleb verification trials",
    "graphgpt": "GraphGPT instruction JSON with the texts or torch_geometric data of its nodes",
    "graph-tables": "a graph as node and edge CSV, or knowledge triples as TSV",
    "pairs": "queries with passages, as JSON lines or a BEIR folder",
    "entity-triples": "knowledge graphs with descriptions, in BLP's files",
    "tables": "parquet files, or a Hugging Face dataset saved to disk",
}

FOLDERS: dict[str, str] = {"pairs": "vectors", "entity-triples": "vectors"}
"""Format -> the folder of its module, where it is not this one."""
