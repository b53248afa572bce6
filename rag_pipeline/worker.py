"""What a machine runs to do the steps of other machines' runs: celery -A rag_pipeline.worker worker"""

from rag_pipeline.executors import celery_app
from rag_pipeline.settings import Settings

app = celery_app(Settings.from_environment())
