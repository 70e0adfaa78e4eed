"""The form that takes a file."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.validators import FileExtensionValidator
from django.template.defaultfilters import filesizeformat

from example.reports import sheets

MAX_BYTES = 5 * 1024 * 1024


class UploadForm(forms.Form):
    """A file of sales. An invalid file is refused before a run starts."""

    file = forms.FileField(
        label="A CSV file of sales",
        label_suffix="",
        help_text=f"Columns: {', '.join(sheets.COLUMNS)}. At most {filesizeformat(MAX_BYTES)}.",
        validators=[FileExtensionValidator(["csv"], "Choose a file whose name ends in .csv.")],
        widget=forms.FileInput(attrs={"accept": ".csv,text/csv"}),
    )

    def clean_file(self) -> Any:
        """Refuse a file that is too large or does not have the right columns."""
        file = self.cleaned_data["file"]
        if file.size > MAX_BYTES:
            size, most = filesizeformat(file.size), filesizeformat(MAX_BYTES)
            raise forms.ValidationError(f"This file has {size}; {most} are allowed.")
        try:
            sheets.read(file.read())
        except sheets.SheetError as error:
            raise forms.ValidationError(str(error)) from error
        file.seek(0)
        return file
